"""The steps are the same at both levels: only the driver under them is another."""

import features.steps.listing
import features.steps.notification
import features.steps.privacy
import features.steps.registration  # noqa: F401  # importing them is what makes them known
