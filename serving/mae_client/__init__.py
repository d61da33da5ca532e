"""A client of a served MAE: features, reconstructions and classes, by REST or gRPC.

Speaks TF Serving's protocol, so `serving/local_server.py` and TF Serving answer alike.
The folder stands alone: copy it to where the client runs, or say `PYTHONPATH=serving`.
It needs NumPy, Pillow and urllib3, and for gRPC `tensorflow-serving-api`, which brings
TensorFlow along and is imported only then.

Example:

```python
from mae_client import Client

with Client("localhost:8501") as client:
    features = client.features(["cat.jpg", "dog.jpg"]).features  # (2, 1 + L, D)
    answer = client.reconstruct("cat.jpg", seed=7)
    answer.save("picture.png", "cat.jpg")
```
"""

from .client import Client
from .errors import ServingError
from .results import (
    Classification,
    Features,
    Reconstruction,
    Signature,
    TensorInfo,
    VersionStatus,
)

__all__ = [
    "Classification",
    "Client",
    "Features",
    "Reconstruction",
    "ServingError",
    "Signature",
    "TensorInfo",
    "VersionStatus",
]
