"""A whole run: data, stages, controls, evaluation, and the pages that report them."""
