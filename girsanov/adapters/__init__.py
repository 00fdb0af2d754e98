"""Networks that were made elsewhere: pipelines of diffusers as models, and what is added to a network."""

from girsanov.adapters.base import Adapter as Adapter
from girsanov.adapters.base import PipelineConfig as PipelineConfig
from girsanov.adapters.base import required as required
from girsanov.adapters.base import rows as rows
from girsanov.adapters.latents import scaled as scaled
from girsanov.adapters.load import FAMILIES as FAMILIES
from girsanov.adapters.load import load_pipeline as load_pipeline
from girsanov.adapters.pictures import PictureEncoder as PictureEncoder
from girsanov.adapters.text import PromptEncoder as PromptEncoder
from girsanov.adapters.text import Row as Row
