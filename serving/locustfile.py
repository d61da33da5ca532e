"""locust user of serving/benchmark.py: sends one prepared request repeatedly.

Run: python serving/benchmark.py, which sets LOAD_BODY (a file), LOAD_PROTOCOL (rest or
grpc) and LOAD_PATH.
"""

import os
from pathlib import Path

import grpc.experimental.gevent
from locust import User, task
from locust.contrib.fasthttp import FastHttpUser

BODY = Path(os.environ["LOAD_BODY"]).read_bytes()
LIMIT = 512 * 2**20

# makes gRPC cooperate with locust's greenlets
grpc.experimental.gevent.init_gevent()


if os.environ["LOAD_PROTOCOL"] == "rest":

    class RestUser(FastHttpUser):
        """Posts the body."""

        @task
        def post(self):
            self.client.post(os.environ["LOAD_PATH"], data=BODY)

else:

    class GrpcUser(User):
        """Sends the body, a serialized message."""

        def on_start(self):
            options = [
                ("grpc.max_receive_message_length", LIMIT),
                ("grpc.max_send_message_length", LIMIT),
            ]
            address = self.host.removeprefix("http://")
            self._call = grpc.insecure_channel(address, options).unary_unary(
                os.environ["LOAD_PATH"]
            )

        @task
        def call(self):
            timer = self.environment.events.request
            with timer.measure("grpc", os.environ["LOAD_PATH"]) as measured:
                measured["response_length"] = len(self._call(BODY, timeout=60))
