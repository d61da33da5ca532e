"""The Hugging Face hub, replaced by a local server: cache, revision, token, offline."""

import base64
import io
import json
import shutil
import time

import numpy as np
import pytest
from huggingface_hub import constants
from PIL import Image

import keras_mae
from keras_mae.models.loading import load_model
from keras_mae.preprocessing.pretrained_processor import training_processor
from keras_mae.weights import PortError
from keras_mae.weights.key_mapping import FACEBOOK
from keras_mae.weights.push_to_hub import _card
from tests.comparison import assert_same_weights
from tests.hub_server import COMMITS, NAME, TOKEN, Hub, serve


def use_endpoint(monkeypatch, endpoint):
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def models(make_model):
    return {"main": make_model(), "v2": make_model(depth=1)}


@pytest.fixture
def hub(models, tmp_path, monkeypatch):
    """A hub with two revisions of one model; the cache is in a folder of its own."""
    for revision, model in models.items():
        folder = tmp_path / revision
        model.save_pretrained(folder)
        keras_mae.MAEImageProcessor(32).save_pretrained(folder)
    folders = {revision: tmp_path / revision for revision in models}
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with serve(folders) as (server, endpoint):
        use_endpoint(monkeypatch, endpoint)
        yield server


@pytest.mark.slow
def test_a_hub_id_is_downloaded_once(hub, models, tmp_path, monkeypatch):
    model = keras_mae.MAEPretrainer.from_pretrained(NAME)
    assert_same_weights(model, models["main"])
    assert model.port_report.place == NAME
    assert (tmp_path / "cache" / "models--facebook--vit-mae-base").is_dir()
    assert not any("pytorch_model" in path for path in hub.seen)
    # offline, the cache is enough
    hub.seen.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_same_weights(keras_mae.MAEPretrainer.from_pretrained(NAME), model)
    assert not hub.seen


@pytest.mark.slow
@pytest.mark.parametrize("remembered", [True, False])
def test_an_older_repository_is_read_offline_too(
    remembered, hub, models, tmp_path, monkeypatch
):
    """The first choice, model.safetensors, is neither there nor in the cache."""
    torch = pytest.importorskip("torch")
    folder = tmp_path / "main"
    (folder / "model.safetensors").unlink()
    state = keras_mae.weights.export_weights(models["main"])
    tensors = {key: torch.tensor(value) for key, value in state.items()}
    torch.save(tensors, folder / "pytorch_model.bin")
    keras_mae.MAEPretrainer.from_pretrained(NAME)
    for path in (tmp_path / "cache").rglob(".no_exist"):
        if not remembered:
            shutil.rmtree(path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model = keras_mae.MAEPretrainer.from_pretrained(NAME)
    assert_same_weights(model, models["main"])


@pytest.mark.slow
def test_local_files_only_asks_nobody(hub):
    with pytest.raises(PortError, match=r"is not cached"):
        keras_mae.MAEEncoder.from_pretrained(NAME, local_files_only=True)
    assert not hub.seen


@pytest.mark.slow
def test_the_revision_is_honoured(hub, models):
    encoder = keras_mae.MAEEncoder.from_pretrained(NAME, revision="v2")
    assert_same_weights(encoder, models["v2"].encoder)


@pytest.mark.slow
def test_the_cache_folder_is_honoured(hub, tmp_path):
    keras_mae.MAEEncoder.from_pretrained(NAME, cache_dir=tmp_path / "other")
    assert any((tmp_path / "other").rglob("model.safetensors"))


@pytest.mark.slow
def test_the_token_is_sent(hub, models):
    with pytest.raises(PortError, match=r"me/private.* can't be downloaded.*token"):
        keras_mae.MAEEncoder.from_pretrained("me/private")
    encoder = keras_mae.MAEEncoder.from_pretrained("me/private", token=TOKEN)
    assert_same_weights(encoder, models["main"].encoder)


@pytest.mark.slow
def test_the_image_processor_comes_from_the_hub(hub):
    processor = keras_mae.MAEImageProcessor.from_pretrained(NAME)
    assert processor.image_size == (32, 32)


@pytest.mark.slow
@pytest.mark.parametrize("remembered", [True, False])
def test_weights_may_come_without_an_image_processor(
    remembered, hub, models, tmp_path, monkeypatch
):
    """Also offline, whether or not the cache knows that there is none."""

    def load():
        model, processor = load_model(NAME)
        assert_same_weights(model, models["main"])
        assert processor is None
        told = training_processor(NAME, 32, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        assert told.image_mean == (0.1, 0.2, 0.3)

    (tmp_path / "main" / "preprocessor_config.json").unlink()
    load()
    for path in (tmp_path / "cache").rglob(".no_exist"):
        if not remembered:
            shutil.rmtree(path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    load()


@pytest.mark.slow
def test_the_hubs_image_processor_is_trained_with(hub):
    _, processor = load_model(NAME)
    assert processor.image_size == (32, 32)
    told = training_processor(NAME, 48, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert told.image_mean == processor.image_mean and told.image_size == (48, 48)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("no/such", {}, r"no folder no/such, and .* can't be downloaded"),
        (NAME, {"revision": "v9"}, r"vit-mae-base, and .* can't be downloaded"),
    ],
)
def test_what_the_hub_has_not_is_named(source, options, message, hub):
    with pytest.raises(PortError, match=message):
        keras_mae.MAEEncoder.from_pretrained(source, **options)


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_is_named(hub, monkeypatch):
    use_endpoint(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between its retries
    with pytest.raises(PortError, match=r"facebook/vit-mae-base.*can't be reached"):
        keras_mae.MAEEncoder.from_pretrained(NAME)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["missing.pth", "a/b/c", "runs/gone.ckpt"])
def test_a_path_that_does_not_exist_is_no_hub_id(source, hub):
    with pytest.raises(PortError, match=rf"Received: {source}, which does not exist"):
        keras_mae.MAEEncoder.from_pretrained(source)
    assert not hub.seen


def move_weights(folder, name):
    """Leaves a PyTorch file of another name, and what a training leaves beside it."""
    torch = pytest.importorskip("torch")
    (folder / "config.json").unlink()
    (folder / "model.safetensors").unlink()
    for other in ("training_args.bin", "optimizer.pt"):
        torch.save({"lr": 0.1, "state": {0: torch.zeros(2)}}, folder / other)
    place = folder / name
    place.parent.mkdir(exist_ok=True)
    return place


@pytest.fixture
def lone_file(hub, models, tmp_path):
    """Puts a model's weights into the repository under a name; returns the state."""

    def put(name):
        torch = pytest.importorskip("torch")
        place = move_weights(tmp_path / "main", name)
        state = keras_mae.weights.export_weights(models["main"], FACEBOOK)
        tensors = {key: torch.tensor(value) for key, value in state.items()}
        torch.save({"model": tensors}, place)

    return put


HEADS = {"num_heads": 2, "decoder_num_heads": 2}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["RETFound_mae_natureCFP.pth", "epoch=9.ckpt"])
def test_a_lone_file_is_found_by_its_ending(name, lone_file, models, monkeypatch):
    lone_file(name)
    loaded = keras_mae.MAEPretrainer.from_pretrained(NAME, **HEADS)
    assert_same_weights(loaded, models["main"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    again = keras_mae.MAEPretrainer.from_pretrained(NAME, **HEADS)
    assert_same_weights(again, models["main"])


@pytest.mark.slow
def test_a_file_and_its_folder_are_named(lone_file, models, tmp_path):
    lone_file("weights/one.pth")
    shutil.copy(tmp_path / "main/weights/one.pth", tmp_path / "main/weights/two.pth")
    with pytest.raises(PortError, match=r"There are .*training_args\.bin"):
        keras_mae.MAEPretrainer.from_pretrained(NAME)
    with pytest.raises(PortError, match=r"name one of one\.pth, two\.pth as filename"):
        keras_mae.MAEPretrainer.from_pretrained(NAME, subfolder="weights")
    with pytest.raises(PortError, match=r"has no 3\.pth. There are one\.pth, two\.pth"):
        keras_mae.MAEPretrainer.from_pretrained(
            NAME, subfolder="weights", filename="3.pth"
        )
    for source in (NAME, tmp_path / "main"):
        loaded = keras_mae.MAEPretrainer.from_pretrained(
            source, subfolder="weights", filename="two.pth", **HEADS
        )
        assert_same_weights(loaded, models["main"])


@pytest.mark.slow
def test_an_upload_has_a_card_and_a_picture(hub, models):
    picture = np.zeros((4, 6, 3), "uint8")
    url = models["main"].push_to_hub(
        NAME,
        keras_mae.MAEImageProcessor(32),
        license="cc-by-nc-4.0",
        training="800 epochs on *birds*.",
        picture=picture,
        private=True,
        token=TOKEN,
    )
    assert url.endswith(f"{NAME}/commit/{COMMITS['main']}")
    assert hub.created[0]["name"] == "vit-mae-base" and hub.created[0]["visibility"]
    ((header, *files),) = hub.commits
    assert header["value"]["summary"] == "Upload MAEPretrainer"
    content = {
        file["value"]["path"]: base64.b64decode(file["value"]["content"])
        for file in files
    }
    assert content.keys() == {
        "README.md", "config.json", "model.safetensors", "preprocessor_config.json",
        "reconstruction.png",
    }  # fmt: skip
    card = content["README.md"].decode()
    assert card.startswith("---\nlicense: cc-by-nc-4.0\n")
    for text in (
        "800 epochs on *birds*.",
        "(reconstruction.png)",
        "| mask ratio | 0.75",
    ):
        assert text in card
    # the line that the card gives
    assert f'keras_mae.MAEPretrainer.from_pretrained("{NAME}")' in card
    with Image.open(io.BytesIO(content["reconstruction.png"])) as image:
        assert image.size == (6, 4)


@pytest.mark.slow
def test_an_upload_in_another_format_leaves_no_older_weights(hub, models):
    pytest.importorskip("torch")
    about = {"license": "mit", "training": "none", "token": TOKEN}
    models["main"].push_to_hub(NAME, format="facebook", **about)
    ((_, *files),) = hub.commits
    changes = {(file["key"], file["value"]["path"]) for file in files}
    assert changes == {
        *(("file", name) for name in ("README.md", "model.pth")),
        *(("deletedFile", name) for name in ("config.json", "model.safetensors")),
    }


def test_an_upload_for_timm_describes_the_encoder(hub, models):
    about = {"license": "mit", "training": "none", "token": TOKEN}
    processor = keras_mae.MAEImageProcessor(32, (0.5,) * 3, (0.2,) * 3)
    models["main"].push_to_hub(NAME, processor, format="timm", **about)
    ((header, *files),) = hub.commits
    assert header["value"]["summary"] == "Upload MAEEncoder"
    content = {
        file["value"]["path"]: base64.b64decode(file["value"]["content"]).decode()
        for file in files
        if not file["value"]["path"].endswith(".safetensors")
    }
    card = content["README.md"]
    # the decoder is left out
    assert f'keras_mae.MAEEncoder.from_pretrained("{NAME}")' in card
    assert f"| parameters | {models['main'].encoder.count_params():,} |" in card
    assert "MAEPretrainer" not in card and "mask ratio" not in card
    images = json.loads(content["config.json"])["pretrained_cfg"]
    assert (images["mean"], images["crop_mode"]) == ([0.5] * 3, "squash")


def test_an_upload_needs_a_licence_and_a_token(hub, models):
    with pytest.raises(ValueError, match=r"license must be a text\. Received"):
        models["v2"].push_to_hub(NAME, license="", training="none")
    with pytest.raises(PortError, match=f"{NAME} can't be uploaded"):
        models["v2"].push_to_hub(NAME, license="mit", training="none", token="wrong")


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", None])
def test_a_broken_connection_is_named(endpoint, hub, models, monkeypatch):
    """Refused, or closed without an answer."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    if endpoint is not None:
        use_endpoint(monkeypatch, endpoint)
    for method in ("do_HEAD", "do_GET", "do_POST"):
        monkeypatch.setattr(Hub, method, lambda self: None)
    with pytest.raises(PortError, match=f"{NAME} can't be uploaded"):
        models["v2"].push_to_hub(NAME, license="mit", training="none", token=TOKEN)
    with pytest.raises(PortError, match=rf"{NAME}.* the hub .*can't be reached"):
        keras_mae.MAEEncoder.from_pretrained(NAME)


@pytest.mark.parametrize("format", ["mmpretrain", "lightly", "solo-learn"])
def test_the_cards_code_loads_what_the_files_do_not_tell(format, make_model, tmp_path):
    pytest.importorskip("torch")
    model = make_model(norm_pix_loss=True, mask_ratio=0.5, decoder_num_heads=4)
    model.save_pretrained(tmp_path, format)
    card = _card(model, str(tmp_path), "mit", "none", format, False)
    names: dict = {}
    exec(card.partition("```python")[2].partition("```")[0], names)
    loaded = names["model"]
    assert_same_weights(loaded, model)
    assert (loaded.norm_pix_loss, loaded.mask_ratio) == (True, 0.5)
    wanted, found = (one.decoder.get_config() for one in (model, loaded))
    for name in ("num_heads", "layer_norm_epsilon"):
        assert found[name] == wanted[name]
