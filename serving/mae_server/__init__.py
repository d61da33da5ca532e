"""Small server of SavedModels by TF Serving's protocol, for laptops and tests.

`versions.py` loads and unloads, `bundle.py` runs signatures, `service.py` and
`inference.py` are the protocol's operations, `rest.py` and `rpc.py` its REST and gRPC
forms, `json_*.py` and `decimals.py` the bodies and `http_server.py` the connections of
the former, `metrics.py` what Prometheus reads. What a request may cost is bounded in
`bodies.py`, `calls.py` and `splitting.py`, which pages may send one in `browsers.py`.
For production use TF Serving: this server has no isolation.
"""
