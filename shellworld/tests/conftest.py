"""The same examples at every run, on however slow a machine."""

import hypothesis

hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
hypothesis.settings.load_profile("fixed")
