"""Preference data: one schema, loaders for public layouts, checks, statistics, conversion, streaming."""

from girsanov.data.convert import convert as convert
from girsanov.data.flips import find_flips as find_flips
from girsanov.data.open import open_preferences as open_preferences
from girsanov.data.open import read_preferences as read_preferences
from girsanov.data.records import Item as Item
from girsanov.data.records import Preference as Preference
from girsanov.data.source import PairFile as PairFile
from girsanov.data.source import RowFile as RowFile
from girsanov.data.text_layouts import LAYOUTS as LAYOUTS
