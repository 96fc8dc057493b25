"""What the server of the ranks imports last: what every rank would do again.

transformers compiles its table of renamed weights, some thousand patterns, with the first model that it loads. And what
is imported by now stays: no collection of garbage has to look at it, in any rank.
"""

import gc

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

get_checkpoint_conversion_mapping("xlm-roberta")
gc.freeze()
