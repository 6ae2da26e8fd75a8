"""The commands by name, or a list of them: see `commands`."""

if __name__ == "__main__":
    from xception_jax import commands

    commands.main()
