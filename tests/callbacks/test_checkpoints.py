"""Checkpoints: atomic, resumed bit-equal, the last few, and failing saves."""

import signal
import threading

import keras
import numpy as np
import pytest

import keras_mae
from keras_mae.callbacks import checkpoints
from keras_mae.runs.run_folder import RunFolder


def compile_and_fit(model, images, callbacks, epochs=1, **options):
    model.compile(optimizer=keras_mae.pretraining_optimizer(1e-3))
    return model.fit(
        images,
        batch_size=2,
        epochs=epochs,
        verbose=0,
        shuffle=False,
        callbacks=callbacks,
        **options,
    )


def state(model):
    parts = [*model.variables, *model.optimizer.variables]
    return [np.asarray(keras.ops.convert_to_numpy(part)) for part in parts]


def saver(folder, **options):
    return checkpoints.Checkpoints(folder, folder / "model.keras", **options)


@pytest.mark.slow
def test_the_last_few_are_kept_and_model_file_is_the_newest(
    make_model, images, tmp_path
):
    compile_and_fit(make_model(), images, [saver(tmp_path, every_steps=1, keep=2)], 3)
    found = checkpoints.list_checkpoints(tmp_path)
    assert list(found) == [5, 6]
    assert (tmp_path / "model.keras").read_bytes() == found[6].read_bytes()
    assert not [path for path in tmp_path.iterdir() if ".part" in path.name]


@pytest.mark.nightly
def test_an_interval_in_minutes(make_model, images, tmp_path, monkeypatch):
    clock = iter(range(0, 10_000, 45))
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: next(clock))
    callback = saver(tmp_path, every_minutes=1, keep=9)
    compile_and_fit(make_model(), images, [callback], epochs=3)
    # 45 seconds pass at each look at the clock: saved at every second step
    assert list(checkpoints.list_checkpoints(tmp_path)) == [2, 4, 6]


@pytest.mark.slow
def test_a_restored_model_trains_bit_equal(make_model, images, tmp_path):
    whole = make_model(dropout_rate=0.1)
    half = make_model(dropout_rate=0.1)
    (tmp_path / "half").mkdir()
    compile_and_fit(half, images, [saver(tmp_path / "half", every_steps=1)])
    keras.utils.set_random_seed(0)
    compile_and_fit(whole, images, [saver(tmp_path, every_steps=1)])
    path = checkpoints.list_checkpoints(tmp_path)[2]
    restored = make_model(dropout_rate=0.1)
    restored.compile(optimizer=keras_mae.pretraining_optimizer(1e-3))
    assert checkpoints.restore_checkpoint(restored, path) == 2
    for model in (whole, restored):
        model.fit(images, batch_size=2, verbose=0, shuffle=False)
    for wanted, got in zip(state(whole), state(restored), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.slow
def test_the_mean_loss_of_an_epoch_counts_the_steps_before(
    make_model, images, tmp_path
):
    images = np.concatenate([images, images[::-1]])
    model = make_model()
    history = compile_and_fit(
        model, images, [saver(tmp_path, every_steps=1, keep=9, steps_per_epoch=4)]
    ).history
    restored = make_model()
    restored.compile(optimizer=keras_mae.pretraining_optimizer(1e-3))
    path = checkpoints.list_checkpoints(tmp_path)[3]
    checkpoints.restore_checkpoint(restored, path)
    (tmp_path / "rest").mkdir()
    rest = restored.fit(
        images[6:],
        batch_size=2,
        verbose=0,
        shuffle=False,
        callbacks=[saver(tmp_path / "rest", steps_per_epoch=4)],
    )
    assert rest.history["loss"] == history["loss"]


def test_a_resumed_epoch_keeps_the_metrics_of_compile(make_model):
    def compiled():
        model = keras_mae.MAEClassifier(make_model().encoder, 3)
        model.compile(
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=[keras.metrics.SparseCategoricalAccuracy(name="top1")],
            weighted_metrics=[keras.metrics.SparseTopKCategoricalAccuracy(2)],
        )
        return model

    right, saved = np.eye(3, dtype="float32"), compiled()
    saved.compute_metrics(None, np.arange(3), right[::-1])
    restored = compiled()
    restored.running_metrics = saved.running_metrics
    restored.compute_metrics(None, np.arange(3), right)
    results = restored.get_metrics_result()
    saved.compute_metrics(None, np.arange(3), right)
    assert results == saved.get_metrics_result() and 0.6 < results["top1"] < 0.7


class Failing:
    """Stands for a model whose file doesn't fit on the disk."""

    def __init__(self, model):
        self.optimizer = model.optimizer

    def save(self, part):
        part.write_bytes(b"half a file")
        raise OSError("No space left on device")


@pytest.mark.slow
def test_a_failing_save_leaves_the_older_checkpoints(make_model, images, tmp_path):
    model = make_model()
    compile_and_fit(model, images, [saver(tmp_path, every_steps=1)])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save_checkpoint(Failing(model), tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.slow
def test_a_failing_disk_does_not_end_a_training(
    make_model, images, tmp_path, monkeypatch, capsys
):
    real, calls = checkpoints.save_checkpoint, []

    def fail_once(*args):
        calls.append(args)
        if len(calls) == 1:
            raise OSError("No space left on device")
        return real(*args)

    monkeypatch.setattr(checkpoints, "save_checkpoint", fail_once)
    compile_and_fit(make_model(), images, [saver(tmp_path, every_steps=1)], epochs=2)
    assert "Cannot save step 1: No space left" in capsys.readouterr().err
    assert list(checkpoints.list_checkpoints(tmp_path)) == [2, 3, 4]


@pytest.fixture
def begun(make_model, tmp_path):
    """Begins a training of a tiny model; returns the model and its callback."""
    former = signal.getsignal(signal.SIGTERM)

    def begin(**options):
        model = make_model(depth=1)
        model.compile(optimizer=keras.optimizers.SGD(0.0))
        model.optimizer.build(model.trainable_variables)
        saving = saver(tmp_path, **options)
        saving.set_model(model)
        saving.set_params({"epochs": 1})
        saving.catch_sigterm()
        saving.on_train_begin()
        return model, saving

    yield begin
    signal.signal(signal.SIGTERM, former)


@pytest.fixture
def full_disk(monkeypatch):
    """Lets every save fail, until it is undone."""

    def fail(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_checkpoint", fail)
        yield patch


LAST_SAVES = [
    {"keep_every": 1, "steps_per_epoch": 1},
    {"keep_every": 1},
    {"every_steps": 1},
]


@pytest.mark.parametrize("options", LAST_SAVES)
def test_a_last_save_that_fails_ends_in_an_error(options, begun, full_disk, tmp_path):
    """Else who sees "Run saved" would throw the weights away."""
    model, saving = begun(**options)
    model.optimizer.iterations.assign(1)
    with pytest.raises(OSError, match="No space left"):
        saving.on_train_batch_end(0)
        saving.on_epoch_end(0)
        saving.on_train_end()
    assert not list(tmp_path.iterdir())


def test_a_last_save_is_tried_again(begun, full_disk, tmp_path, capsys):
    model, saving = begun(every_steps=1)
    model.optimizer.iterations.assign(1)
    saving.on_train_batch_end(0)
    assert "Cannot save step 1" in capsys.readouterr().err
    full_disk.undo()
    saving.on_epoch_end(0)
    saving.on_train_end()
    assert list(checkpoints.list_checkpoints(tmp_path)) == [1]


def test_sigterm_does_not_tell_of_a_save_that_failed(begun, full_disk, capsys):
    model, saving = begun(every_steps=1)
    model.optimizer.iterations.assign(1)
    saving.on_train_batch_end(0)
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(OSError, match="No space left"):
        saving.on_train_end()
    assert "SIGTERM: saved" not in capsys.readouterr().err


def test_a_folder_of_a_longer_training_is_refused(begun, tmp_path):
    """Its checkpoints are newer by number: resuming would go on from them."""
    names = [f"step-{step:09d}.keras" for step in (300, 600, 900)]
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"no checkpoint after step 0.*900.keras"):
        begun(every_steps=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_fit_in_another_thread_leaves_signals_alone(begun, make_model, tmp_path):
    saving, handler = saver(tmp_path), signal.getsignal(signal.SIGTERM)
    failures = []

    def train():
        model = make_model(depth=1)
        model.compile(optimizer=keras.optimizers.SGD(0.0))
        model.optimizer.build(model.trainable_variables)
        saving.set_model(model)
        try:
            saving.on_train_begin()
            model.optimizer.iterations.assign(1)
            saving.on_train_end()
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert not failures and signal.getsignal(signal.SIGTERM) == handler
    assert list(checkpoints.list_checkpoints(tmp_path)) == [1]


def test_a_model_of_keras_alone_goes_on_within_an_epoch(tmp_path):
    """Without running metrics of its own, which are then those of the rest."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(optimizer=keras.optimizers.SGD(0.0), loss="mse")
    model.optimizer.build(model.trainable_variables)
    model.optimizer.iterations.assign(3)
    model.fit(
        np.ones((2, 2)),
        np.ones((2, 1)),
        batch_size=2,
        verbose=0,
        callbacks=[saver(tmp_path, steps_per_epoch=4)],
    )
    assert list(checkpoints.list_checkpoints(tmp_path)) == [4]


@pytest.mark.slow
def test_sigterm_saves_and_ends_with_its_code(make_model, images, tmp_path):
    class Terminate(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            signal.raise_signal(signal.SIGTERM)

    older = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as stopped:
            compile_and_fit(make_model(), images, [Terminate(), saver(tmp_path)], 9)
    finally:
        signal.signal(signal.SIGTERM, older)
    assert stopped.value.code == 75
    assert list(checkpoints.list_checkpoints(tmp_path)) == [1]


@pytest.mark.slow
def test_a_file_of_another_model_or_step_is_refused(make_model, images, tmp_path):
    model = make_model()
    compile_and_fit(model, images, [saver(tmp_path)])
    path = checkpoints.list_checkpoints(tmp_path)[2]
    other = make_model(hidden_dim=64)
    other.compile(optimizer=keras_mae.pretraining_optimizer(1e-3))
    with pytest.raises(ValueError, match="can't be loaded into this model"):
        checkpoints.restore_checkpoint(other, path)
    renamed = path.rename(tmp_path / "step-000000009.keras")
    with pytest.raises(ValueError, match=r"the step in its name. Received: 2"):
        checkpoints.restore_checkpoint(model, renamed)
    renamed.write_bytes(renamed.read_bytes()[:1000])
    with pytest.raises(ValueError, match="can't be loaded into this model"):
        checkpoints.restore_checkpoint(model, renamed)


def test_too_little_space_is_found_before_training(tmp_path):
    with pytest.raises(ValueError, match=r"for 3 more checkpoints. Received: a disk"):
        checkpoints.check_disk_space(tmp_path, size=2**60, count=3)
    checkpoints.check_disk_space(tmp_path, size=2**60, count=0)


@pytest.mark.parametrize("name", ["every_steps", "every_minutes", "keep"])
def test_intervals_are_checked(name, tmp_path):
    with pytest.raises(ValueError, match=f"{name} must be positive. Received: 0"):
        saver(tmp_path, **{name: 0})


@pytest.mark.slow
def test_the_end_of_an_epoch_is_saved_after_its_row(make_model, images, tmp_path):
    rows = []

    class Row(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            rows.append(sorted(checkpoints.list_checkpoints(tmp_path)))

    callback = saver(tmp_path, every_steps=1, keep=9, steps_per_epoch=2)
    compile_and_fit(make_model(), images, [Row(), callback], epochs=2)
    assert rows == [[1], [1, 2, 3]]
    assert sorted(checkpoints.list_checkpoints(tmp_path)) == [1, 2, 3, 4]


@pytest.mark.parametrize("every_steps", [None, 1])
def test_what_a_callback_restores_at_the_end_is_in_model_file(
    every_steps, make_model, tmp_path
):
    """The checkpoint has the weights as trained, from which `--resume` goes on."""
    model = make_model(depth=1)
    model.compile(optimizer=keras.optimizers.SGD(0.0))
    model.optimizer.build(model.trainable_variables)
    saving = saver(tmp_path, every_steps=every_steps, steps_per_epoch=1)
    saving.set_model(model)
    saving.set_params({"epochs": 9})
    saving.on_train_begin()
    model.optimizer.iterations.assign(1)
    model.stop_training = True
    saving.on_epoch_end(0)
    trained, best = model.get_weights(), [w + 1 for w in model.get_weights()]
    model.set_weights(best)  # as EarlyStopping does, before it is called
    saving.on_train_end()
    step = checkpoints.list_checkpoints(tmp_path)[1]
    for path, wanted in ((step, trained), (tmp_path / "model.keras", best)):
        got = keras.models.load_model(path).get_weights()
        for one, other in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_sigterm_stops_even_if_saving_fails(make_model, images, tmp_path, capsys):
    callback = saver(tmp_path / "nowhere")
    older = signal.getsignal(signal.SIGTERM)
    callback.catch_sigterm()
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        compile_and_fit(make_model(), images, [callback])
    callback.release_sigterm()
    assert stopped.value.code == checkpoints.EX_TEMPFAIL
    assert "Cannot save step 1" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == older


def test_the_best_epoch_is_kept_also_over_runs(make_model, tmp_path):
    model = make_model()
    model.compile(optimizer=keras_mae.pretraining_optimizer(1e-3))
    path = tmp_path / "best.keras"

    def score(values, callback):
        kept = []
        for epoch, value in enumerate(values):
            before = path.read_bytes() if path.exists() else None
            model.encoder.norm.beta.assign(model.encoder.norm.beta + 1)
            callback.on_epoch_end(epoch, {"val_top1": value})
            kept.append(path.read_bytes() != before)
        return kept

    first = checkpoints.BestCheckpoint(path, "val_top1")
    first.set_model(model)
    first.on_train_begin()
    assert score([0.2, 0.5, 0.4], first) == [True, True, False]
    resumed = checkpoints.BestCheckpoint(path, "val_top1")
    resumed.set_model(model)
    resumed.on_train_begin()
    assert resumed.best == 0.5
    assert score([0.5, 0.6], resumed) == [False, True]


def test_a_best_epoch_that_is_not_saved_is_not_the_best(
    make_model, tmp_path, monkeypatch, capsys
):
    callback = checkpoints.BestCheckpoint(tmp_path / "best.keras", "val_top1")
    callback.set_model(make_model())
    callback.on_epoch_end(0, {"val_top1": 0.75})

    def fail(path):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(callback.model, "save", fail)
        callback.on_epoch_end(1, {"val_top1": 0.8})
    assert "of epoch 2: disk full" in capsys.readouterr().err
    assert callback.best == 0.75
    callback.on_epoch_end(2, {"val_top1": 0.79})
    assert callback.best == 0.79


@pytest.mark.nightly
def test_an_exception_gives_the_end_of_fit_back_to_keras(make_model, images, tmp_path):
    model = make_model()
    model.compile(optimizer=keras_mae.pretraining_optimizer(1e-2, ema=0.5))

    def interrupt(*arguments):
        raise KeyboardInterrupt

    stop = keras.callbacks.LambdaCallback(on_epoch_end=interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.fit(images, verbose=0, callbacks=[saver(tmp_path, keep=1), stop])
    model.fit(images, verbose=0)
    averages = model.optimizer._model_variables_moving_average
    for variable, average in zip(model.trainable_variables, averages, strict=True):
        np.testing.assert_array_equal(np.asarray(variable), np.asarray(average))


def test_a_history_without_weights_is_neither_deleted_nor_continued(tmp_path):
    """It may be somebody else's."""
    run = RunFolder(tmp_path)
    run.history.write_text("date,price\n2026-11-28,3\n")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"history.csv lies .* without a run"):
            run.check_free(overwrite=overwrite)
    run.clear()
    assert "price" in run.history.read_text()


def test_another_librarys_configuration_is_not_replaced(tmp_path):
    run = RunFolder(tmp_path)
    run.config.write_text('{"model_type": "vit_mae"}')
    with pytest.raises(ValueError, match=r"config.json lies .* without a run"):
        run.check_free(overwrite=True)
    # of a run that was killed before it had weights, or copied for --config
    run.config.write_text('{"dataset": "digits"}')
    run.check_free()


def test_what_cannot_be_resumed_is_not_told_to_resume(tmp_path):
    run = RunFolder(tmp_path)
    run.model.touch()
    with pytest.raises(ValueError, match="no checkpoint to resume from") as refused:
        run.check_free(resume=True)
    assert "give --resume" not in str(refused.value)
    run.check_free(overwrite=True)


def test_a_best_epoch_alone_is_a_run(tmp_path):
    """What somebody kept of it must not be the score that a new run has to beat."""
    run = RunFolder(tmp_path)
    run.check_free()
    run.best.touch()
    run.best.with_suffix(".json").write_text('{"val_top1": 0.97}')
    with pytest.raises(ValueError, match="holds a run already"):
        run.check_free()
    run.clear()
    assert not list(tmp_path.iterdir())
    run.check_free()


class Interrupt(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        raise KeyboardInterrupt


@pytest.mark.nightly
def test_sigterm_is_heard_after_an_interrupted_fit(make_model, images, tmp_path):
    heard = []
    former = signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    try:
        model = make_model()
        model.compile(optimizer=keras.optimizers.SGD(0.0))
        saving = checkpoints.Checkpoints(
            tmp_path, tmp_path / "model.keras", every_minutes=10
        )
        with pytest.raises(KeyboardInterrupt):
            model.fit(images, verbose=0, callbacks=[saving, Interrupt()])
        signal.raise_signal(signal.SIGTERM)
        assert heard == [1]
    finally:
        signal.signal(signal.SIGTERM, former)


@pytest.mark.slow
def test_milestones_stay(make_model, images, tmp_path):
    model = make_model()
    model.compile(optimizer=keras.optimizers.SGD(0.0))
    saving = checkpoints.Checkpoints(
        tmp_path, tmp_path / "model.keras", every_steps=1, keep=1, keep_every=2
    )
    model.fit(images, batch_size=4, epochs=5, verbose=0, callbacks=[saving])
    names = {path.name for path in tmp_path.iterdir()}
    steps = {f"step-{5:09d}.keras", "model.keras"}
    assert names == {"epoch-0002.keras", "epoch-0004.keras", *steps}
    milestone = keras.models.load_model(tmp_path / "epoch-0004.keras")
    assert int(milestone.optimizer.iterations) == 4
    with pytest.raises(ValueError, match="keep_every must be positive"):
        checkpoints.Checkpoints(tmp_path, tmp_path / "model.keras", keep_every=0)


def test_a_milestone_that_cannot_be_written_does_not_end_training(
    make_model, tmp_path, capsys, monkeypatch
):
    def full(*paths):
        raise OSError(28, "No space left on device")

    model = make_model(depth=1)
    model.compile(optimizer=keras.optimizers.SGD(0.0))
    saving = saver(tmp_path, keep_every=1)
    saving.set_model(model)
    saving.on_train_begin()
    saving.save(0)
    monkeypatch.setattr(checkpoints, "link_or_copy", full)
    saving.on_epoch_end(0)
    saving.on_train_end()
    (line,) = capsys.readouterr().err.splitlines()
    assert "Cannot save" in line and "epoch-0001.keras: [Errno 28]" in line


def test_a_milestone_is_kept_where_a_signal_ends_the_run(make_model, tmp_path):
    model = make_model(depth=1)
    model.compile(optimizer=keras.optimizers.SGD(0.0))
    model.optimizer.build(model.trainable_variables)
    saving = saver(tmp_path, keep_every=2, steps_per_epoch=1)
    saving.set_model(model)
    saving.catch_sigterm()
    try:
        saving.on_train_begin()
        model.optimizer.iterations.assign(2)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(SystemExit):
            saving.on_epoch_end(1)
    finally:
        saving.release_sigterm()
    steps = {f"step-{2:09d}.keras", "model.keras"}
    assert {path.name for path in tmp_path.iterdir()} == {"epoch-0002.keras", *steps}


@pytest.mark.parametrize("several_fits", [False, True])
def test_a_signal_in_the_last_save_ends_with_its_code(
    several_fits, make_model, tmp_path, monkeypatch
):
    model = make_model(depth=1)
    model.compile(optimizer=keras.optimizers.SGD(0.0))
    model.optimizer.build(model.trainable_variables)
    save, heard = model.save, []

    def interrupted(path):
        signal.raise_signal(signal.SIGTERM)
        save(path)

    former = signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    try:
        saving = saver(tmp_path)
        saving.set_model(model)
        if several_fits:
            saving.catch_sigterm()
        saving.on_train_begin()
        model.optimizer.iterations.assign(1)
        monkeypatch.setattr(model, "save", interrupted)
        # `_is_in_fit` looks for the method of the model
        monkeypatch.setattr(saving, "_is_in_fit", lambda frame: True)
        with pytest.raises(SystemExit) as stopped:
            saving.on_train_end()
        assert stopped.value.code == checkpoints.EX_TEMPFAIL
        assert list(checkpoints.list_checkpoints(tmp_path)) == [1] and not heard
        signal.raise_signal(signal.SIGTERM)
        assert len(heard) == (0 if several_fits else 1)
    finally:
        signal.signal(signal.SIGTERM, former)
