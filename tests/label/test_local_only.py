"""The label server answers programs and its own pages on this computer, and no page of elsewhere, by any method."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from label_app.lib.local_only import LocalOnly

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
HERE = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def client():
    def train(request):
        return PlainTextResponse("started")

    app = Starlette(routes=[Route("/train", train, methods=METHODS)], middleware=[Middleware(LocalOnly)])
    return TestClient(app, base_url=HERE)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://example.org"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://127.0.0.1:3000"},
        {"Origin": "https://127.0.0.1:8000"},
        {"Origin": "http://localhost:8000"},
        {"Origin": "http://127.0.0.1:8000.example.org"},
        {"Host": "example.org"},
        {"Host": "127.0.0.1.example.org:8000"},
        {"Host": "127.0.0.1:8000@example.org"},
        {"Host": "example.org", "Origin": "http://example.org"},  # a name bound to this address
        {"Host": ""},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_no_page_of_elsewhere_is_answered(client, method, headers):
    answer = client.request(method, "/train", headers=headers)
    assert answer.status_code == 403
    assert "started" not in answer.text
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "headers",
    [
        {},  # 3D Slicer, curl
        {"Origin": HERE, "Sec-Fetch-Site": "same-origin"},
        {"Host": "localhost:8000", "Origin": "http://localhost:8000"},
        {"Host": "localhost"},
        {"Sec-Fetch-Site": "none"},  # an address that was typed
    ],
)
def test_programs_and_its_own_pages_are_answered(client, method, headers):
    assert client.request(method, "/train", headers=headers).status_code == 200


def test_two_hosts_or_origins_are_one_too_many(client):
    for name, values in (("Host", ("127.0.0.1:8000", "example.org")), ("Origin", (HERE, "https://example.org"))):
        answer = client.post("/train", headers=[(name, value) for value in values])
        assert answer.status_code == 403


def test_the_servers_own_application_refuses_a_preflight(monkeypatch):
    """MONAI Label's answers it to any page: its middleware for that has gone, and ours is before all others."""
    label = ModuleType("monailabel.app")
    label.app = Starlette(middleware=[Middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["*"])])
    monkeypatch.setitem(sys.modules, "monailabel", ModuleType("monailabel"))
    monkeypatch.setitem(sys.modules, "monailabel.app", label)
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "label_app")
    web = importlib.import_module("lib.web")
    headers = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    answer = TestClient(web.app, base_url=HERE).options("/train", headers=headers)
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers
