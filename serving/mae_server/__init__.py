"""A small server of SavedModels by TF Serving's protocol, for laptops and tests.

`versions.py` loads and unloads, `bundle.py` runs a signature, `service.py` is the
protocol's operations, `rest.py` and `rpc.py` its two forms. For production use TF
Serving itself: this one has no batching, no isolation and no metrics.
"""
