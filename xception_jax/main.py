"""The command `train`: see `commands.train`."""

if __name__ == "__main__":
    from xception_jax import commands

    commands.run("train")
