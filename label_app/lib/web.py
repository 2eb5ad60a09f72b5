"""The web application of the server: MONAI Label's, for clients on this computer alone.

MONAI Label lets any web page that is open in a browser here ask it for images. This one answers no page of elsewhere,
and no request that names another host.
"""

from monailabel.app import app
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

__all__ = ["app"]

app.user_middleware = [
    *(middleware for middleware in app.user_middleware if middleware.cls is not CORSMiddleware),
    Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"]),
]
