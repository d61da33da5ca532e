"""Client of a served model: features, reconstructions and classes, by REST or gRPC.

Speaks TF Serving's protocol, to TF Serving or `serving/local_server.py`. The folder
stands alone: copy it to the client machine, or set `PYTHONPATH=serving`. It needs
NumPy, Pillow and httpx2; gRPC also needs grpcio and protobuf. TensorFlow isn't needed.

Example:

```python
from mae_client import Client

with Client("localhost:8501") as client:
    features = client.features(["cat.jpg", "dog.jpg"]).features  # (2, 1 + L, D)
    answer = client.reconstruct("cat.jpg", seed=7)
    answer.save("picture.png", "cat.jpg")
```
"""

from .aio import AsyncClient
from .client import Client
from .errors import ServingError
from .results import (
    Classification,
    Embeddings,
    Features,
    PngReconstruction,
    Reconstruction,
    Signature,
    TensorInfo,
    VersionStatus,
)

__all__ = [
    "AsyncClient",
    "Classification",
    "Client",
    "Embeddings",
    "Features",
    "PngReconstruction",
    "Reconstruction",
    "ServingError",
    "Signature",
    "TensorInfo",
    "VersionStatus",
]
