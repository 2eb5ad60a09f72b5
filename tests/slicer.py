"""What 3D Slicer asks of a MONAI Label server: starts one without a network, goes through a list of steps, tells all.

`python tests/slicer.py PLAN.json ANSWERS.json`. The plan holds `server` (`command`, `cwd`, `env`, `log`), `port` and
`steps`, each a list of a function's name below and its arguments; the answers are those of the steps.
"""

import contextlib
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import requests

LOOPBACK_UP = struct.pack("16sh", b"lo", 0x1 | 0x40)  # IFF_UP, IFF_RUNNING
SIOCSIFFLAGS = 0x8914
MASK = {"device": "cpu", "result_extension": ".nrrd", "result_dtype": "uint8", "client_id": "user-xyz"}
TRAINING = {  # every field of Slicer's options, as it sends them
    "device": "cpu",
    "pretrained": True,
    "max_epochs": 1,
    "val_split": 0.4,
    "multi_gpu": True,
    "gpus": "all",
    "tracking": "None",
    "tracking_uri": "",
    "tracking_experiment_name": "",
    "run_id": "",
    "model_filename": "model.pt",
    "client_id": "user-xyz",
}


class Session:
    """A server and what was asked of it."""

    def __init__(self, plan):
        self.plan = plan
        self.url = f"http://127.0.0.1:{plan['port']}"
        self.process = None

    def start(self):
        """Start the server and wait for it."""
        server = self.plan["server"]
        with Path(server["log"]).open("a") as log:
            self.process = subprocess.Popen(
                server["command"],
                cwd=server["cwd"],
                env={**os.environ, **server["env"]},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        for _ in range(300):
            with contextlib.suppress(requests.ConnectionError):
                return requests.get(f"{self.url}/info/", timeout=60).json()
            if self.process.poll() is not None:
                break
            time.sleep(1)
        raise SystemExit(f"no server: {Path(server['log']).read_text()[-3000:]}")

    def stop(self):
        """Stop the server and what it started."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait(60)

    def restart(self):
        self.stop()
        return self.start()

    def segment(self, model, image, target):
        """A mask, as a file; the status and what was told with an error."""
        answer = self._infer(model, image, "image")
        if answer.status_code != 200:
            return {"status": answer.status_code, **answer.json()}
        Path(target).write_bytes(answer.content)
        return {"status": 200}

    def ask(self, model, image):
        """What an inference answers as JSON."""
        answer = self._infer(model, image, "json")
        return {"status": answer.status_code, **answer.json()}

    def _infer(self, model, image, output):
        url = f"{self.url}/infer/{model}?image={image}&output={output}"
        return requests.post(url, files={"params": (None, json.dumps(MASK))}, timeout=600)

    def label(self, image, file):
        """Submit a corrected label."""
        with Path(file).open("rb") as content:
            fields = {"params": (None, '{"label_info": [{"name": "lesion", "idx": 1}]}'), "label": content}
            url = f"{self.url}/datastore/label?image={image}&tag=final"
            return requests.put(url, files=fields, timeout=60).json()

    def train(self, model, **changes):
        """Train, wait, and tell how it ended."""
        requests.post(f"{self.url}/train/{model}", json={**TRAINING, **changes}, timeout=60).raise_for_status()
        return self._end_of("/train/")

    def batch(self, model):
        """Segment all images, wait, and tell how it ended."""
        params = {"device": "cpu", "multi_gpu": False, "images": "all"}
        requests.post(f"{self.url}/batch/infer/{model}", json=params, timeout=60).raise_for_status()
        return self._end_of("/batch/infer")

    def _end_of(self, task):
        while (state := requests.get(self.url + task, timeout=60).json())["status"] in ("SUBMITTED", "RUNNING"):
            time.sleep(1)
        return {"status": state["status"], "details": list(state["details"])}

    def elsewhere(self):
        """How a page of elsewhere is answered, and the addresses the server listens on."""
        foreign = {"Origin": "http://elsewhere.example"}
        page = requests.get(f"{self.url}/info/", headers=foreign, timeout=60)
        named = requests.get(f"{self.url}/info/", headers={"Host": "elsewhere.example"}, timeout=60)
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        ports = [line[1].split(":") for line in lines if line[3] == "0A"]  # listening
        own = [address for address, port in ports if int(port, 16) == self.plan["port"]]
        return {
            "allowed": page.headers.get("access-control-allow-origin"),
            "status": named.status_code,
            "listens": [socket.inet_ntoa(bytes.fromhex(address)[::-1]) for address in own],
        }


def main(plan, answers):
    """Go through a plan."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as device:
        fcntl.ioctl(device, SIOCSIFFLAGS, LOOPBACK_UP)  # down in a network namespace of its own
    session = Session(json.loads(Path(plan).read_text()))
    told = []
    try:
        for name, *arguments in session.plan["steps"]:
            options = arguments.pop() if arguments and isinstance(arguments[-1], dict) else {}
            told.append(getattr(session, name)(*arguments, **options))
            Path(answers).write_text(json.dumps(told))
    finally:
        session.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
