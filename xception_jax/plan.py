"""The command `plan`: see `commands.plan`."""

if __name__ == "__main__":
    from xception_jax import commands

    commands.run("plan")
