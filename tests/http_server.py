"""A threaded HTTP server for stand-ins."""

import http.server
import sys


class Server(http.server.ThreadingHTTPServer):
    """Says nothing where a client left before its answer, as clients in tests do.

    That traceback would come later, in the standard error of whichever test runs then.
    """

    daemon_threads = True

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)
