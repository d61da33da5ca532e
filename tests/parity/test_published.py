"""The published weights give the published numbers; downloads them when asked to.

Run: KERAS_MAE_GOLDEN=1 pytest tests/parity/test_published.py
"""

import os
import urllib.request

import numpy as np
import pytest

import keras_mae

torch = pytest.importorskip("torch")
if not os.environ.get("KERAS_MAE_GOLDEN"):
    pytest.skip("downloads 4 GB; set KERAS_MAE_GOLDEN=1", allow_module_level=True)

# of Hugging Face's conversion: PyTorch's seed 2, the fox, logits[0, :3, :3]
PICTURE = (
    "https://user-images.githubusercontent.com/11435359/"
    "147738734-196fd92f-9260-48d5-ba7e-bf103d29364d.jpg"
)
LOGITS = {
    "base": [
        [-0.9192, -0.8481, -1.1259],
        [-1.1349, -1.0034, -1.2599],
        [-1.1757, -1.0429, -1.2726],
    ],
    "large": [
        [-0.7309, -0.7128, -1.0169],
        [-1.0161, -0.9058, -1.1878],
        [-1.0478, -0.9411, -1.1911],
    ],
    "huge": [
        [-1.1599, -0.9199, -1.2221],
        [-1.1952, -0.9269, -1.2307],
        [-1.2143, -0.9337, -1.2262],
    ],
}
# facebook's file for each, which predicts the same pixels
FILES = "https://dl.fbaipublicfiles.com/mae/visualize/mae_visualize_vit_{}.pth"


@pytest.fixture(scope="module")
def picture():
    with urllib.request.urlopen(PICTURE) as response:
        return response.read()


@pytest.fixture(params=["hub", "facebook"])
def source(request, tmp_path):
    def find(size):
        if request.param == "hub":
            return f"facebook/vit-mae-{size}"
        url = FILES.format(size)
        path, _ = urllib.request.urlretrieve(url, tmp_path / url.rpartition("/")[2])
        return path

    return find


@pytest.mark.parametrize("size", LOGITS)
def test_published_logits(size, source, picture):
    model = keras_mae.MAEPretrainer.from_pretrained(source(size))
    processor = keras_mae.MAEImageProcessor.from_pretrained(f"facebook/vit-mae-{size}")
    torch.manual_seed(2)
    noise = torch.rand(1, model.encoder.num_patches).numpy()
    logits = model(processor(picture), noise=noise)["logits"]
    np.testing.assert_allclose(logits[0, :3, :3], LOGITS[size], atol=1e-4)
