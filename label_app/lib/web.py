"""The web application of the server: MONAI Label's, for clients on this computer alone.

MONAI Label lets any web page that is open in a browser here ask it for images, and start a training. This one answers
no page of elsewhere, and no request that names another host.
"""

from monailabel.app import app
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from lib.local_only import LocalOnly

__all__ = ["app"]

app.user_middleware = [
    Middleware(LocalOnly),  # the outermost: a preflight (OPTIONS) is refused, too
    *(middleware for middleware in app.user_middleware if middleware.cls is not CORSMiddleware),
]
