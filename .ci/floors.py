"""Print a pip constraint for every floor: ``name >= 1.2`` in setup.cfg or pyproject.toml becomes ``name == 1.2``."""

import configparser
import tomllib
from pathlib import Path

config = configparser.ConfigParser()
config.read_string(Path("setup.cfg").read_text())
lists = [config["options"]["install_requires"], *config["options.extras_require"].values()]
requirements = [line for text in lists for line in text.split("\n")]
requirements += tomllib.loads(Path("pyproject.toml").read_text())["build-system"]["requires"]
print(*(line.replace(">=", "==") for line in requirements if ">=" in line), sep="\n")
