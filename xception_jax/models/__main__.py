"""The command `models`: see `commands.models`."""

if __name__ == "__main__":
    from xception_jax import commands

    commands.run("models")
