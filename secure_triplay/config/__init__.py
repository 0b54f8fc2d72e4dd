"""A study as a frozen, validated object: YAML in, `Study` or a `ConfigError` out.

Everything in a study is public: it is what the sites agree on and what an auditor reads. Nothing here is
derived from a site's records; sampling rates, normalisers and weights are constants that people chose.
"""

from secure_triplay.config.aggregation import Codec, Masked, SharedKey
from secure_triplay.config.data import FashionMnist, Manifest, Partition, Site
from secure_triplay.config.kinds import Count, Name, Positive, Sha256
from secure_triplay.config.load import load_study, parse_study, study_content, study_schema
from secure_triplay.config.model import MAX_RANK, Adapter, Backbone, ClassPrompts
from secure_triplay.config.privacy import DpOff, DpOn, LocalNoise, SharedNoise
from secure_triplay.config.study import Study
from secure_triplay.config.training import PublishedAccuracy, ServerOptimiser, Training

__all__ = [
    "MAX_RANK",
    "Adapter",
    "Backbone",
    "ClassPrompts",
    "Codec",
    "Count",
    "DpOff",
    "DpOn",
    "FashionMnist",
    "LocalNoise",
    "Manifest",
    "Masked",
    "Name",
    "Partition",
    "Positive",
    "PublishedAccuracy",
    "ServerOptimiser",
    "Sha256",
    "SharedKey",
    "SharedNoise",
    "Site",
    "Study",
    "Training",
    "load_study",
    "parse_study",
    "study_content",
    "study_schema",
]
