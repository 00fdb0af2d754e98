"""Configuration: typed, checked, all mistakes at once, from YAML and the command line."""

from girsanov.config.files import dump_config as dump_config
from girsanov.config.files import load_config as load_config
from girsanov.config.files import merge as merge
from girsanov.config.files import nest as nest
from girsanov.config.files import parse_overrides as parse_overrides
from girsanov.config.files import read_yaml as read_yaml
from girsanov.config.parts import Part as Part
from girsanov.config.parts import describe as describe
from girsanov.config.parts import make as make
from girsanov.config.parts import members as members
