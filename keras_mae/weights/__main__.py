"""`python -m keras_mae.weights`: the command `keras-mae-convert` by another name."""

from keras_mae.convert.command import cli

if __name__ == "__main__":
    cli()
