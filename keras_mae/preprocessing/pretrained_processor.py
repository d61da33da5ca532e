"""Find the image processor of a run or of published weights, or a default one."""

import os
from pathlib import Path

from keras_mae.preprocessing.image_processor import MAEImageProcessor
from keras_mae.weights.checkpoint import PortError
from keras_mae.weights.hub import PROCESSOR_FILE, HubUnavailableError, Location

# of a run's folder
CHECKPOINTS_NAME = "checkpoints"


def find_processor(source, **reading):
    """Loads a source's image processor; `None` without one, or offline."""
    path = find_processor_file(source, **reading)
    if path is not None:
        # a file that isn't supported raises: no other mean and deviation would do
        return MAEImageProcessor.from_pretrained(path)
    try:
        # what timm's config.json says
        return MAEImageProcessor.from_pretrained(source, **reading)
    except PortError:
        return None


def find_processor_file(source, **reading):
    """Returns the path of a source's `preprocessor_config.json`, or `None`."""
    try:
        place = Location(source, **reading)
        found = place.find(PROCESSOR_FILE)
        folder = Path(os.path.abspath(place.source))
        if found is None and place.is_folder and folder.name == CHECKPOINTS_NAME:
            # one of a run's checkpoints; the run's folder is above
            found = Location(folder.parent).find(PROCESSOR_FILE)
        return found
    except HubUnavailableError:
        return None  # offline, the cache may not tell whether there is one


def default_processor(source, model):
    """Returns the published weights' processor, and prints that it does."""
    encoder = getattr(model, "encoder", model)
    if encoder.num_channels != 3:
        raise ValueError(
            f"A model of {encoder.num_channels} channels needs its "
            f"{PROCESSOR_FILE}. Received: {source}, without one"
        )
    processor = MAEImageProcessor(encoder.image_size)
    print(
        f"No {PROCESSOR_FILE} was found for {source}: images are prepared as for the "
        f"published weights ({processor.resample}, ImageNet's mean and deviation)"
    )
    return processor


def training_processor(
    source, image_size, channel_mean, channel_std, exif_orientation=None
):
    """Returns a bicubic processor for training, normalized as the source's is."""
    found = None if source is None else find_processor(source)
    if found is not None and found.num_channels == len(channel_mean):
        channel_mean, channel_std = found.image_mean, found.image_std
    elif source is not None:
        print(
            f"No {PROCESSOR_FILE} for {len(channel_mean)} channel(s) was found for "
            f"{source}: images are normalized by the data set's mean "
            f"{list(channel_mean)} and deviation {list(channel_std)}"
        )
    if exif_orientation is None:
        exif_orientation = found is not None and found.exif_orientation
    return MAEImageProcessor(
        image_size, channel_mean, channel_std, "bicubic", exif_orientation
    )
