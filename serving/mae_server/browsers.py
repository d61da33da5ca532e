"""Cross-origin protection (CSRF, DNS rebinding) and CORS headers.

A web page may send requests to any address, though it can't read the answers. It can't
choose some headers, though, and a name that it points to this machine stays in `Host`.
"""

import ipaddress
import re
import socket
from urllib.parse import urlsplit

from mae_server.errors import shortened

# a page sends these without asking first, and no client of this protocol does
_PLAIN = ("text/plain", "multipart/form-data")
_CROSS_ORIGIN = (
    "Cross-origin request refused (CORS): --rest_api_enable_cors_support allows them"
)


def allowed_names(host, more=""):
    """Returns the names by which this server may be called, beside IP addresses."""
    names = (socket.gethostname(), host, *more.replace(",", " ").split())
    return {"localhost", *map(str.lower, names)}


def refusal(method, headers, names, any_page=False):
    """Returns `(status, message)` of a request to refuse, `None` of one to answer."""
    host = headers.get("host", "")
    if not _is_known(host, names):
        return 403, (
            "Host must be an IP address, localhost, this machine's name, --host or a "
            f"name in --allowed_hosts. Received: {shortened(host)}"
        )
    if any_page:
        return None
    origin = headers.get("origin")
    if origin is not None and origin.lower().partition("://")[2] != host.lower():
        return 403, _CROSS_ORIGIN
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return 403, _CROSS_ORIGIN
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if method == "POST" and kind in _PLAIN:
        return 415, "Content-Type must be application/json"
    return None


# model_servers/http_rest_api_util.cc, AddCORSHeaders
CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
}


def answer_to_options(headers):
    """Returns the HTTP status of OPTIONS, by which a browser asks for a page."""
    return 200 if re.search("https?://", headers.get("origin", "")) else 400


def _is_known(host, names):
    if not host:  # HTTP/1.0, which no browser speaks
        return True
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    try:
        ipaddress.ip_address(name)
        return True
    except ValueError:
        return name in names or "*" in names
