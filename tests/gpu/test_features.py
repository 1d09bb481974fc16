"""What tests/device asks of a stand-in, asked of a GPU: the CPU's numbers from every feature."""

from tests.device.test_adapters import *  # noqa: F403
from tests.device.test_benches import *  # noqa: F403
from tests.device.test_calls import *  # noqa: F403
from tests.device.test_examples import *  # noqa: F403
from tests.device.test_interchange import *  # noqa: F403
from tests.device.test_interop import *  # noqa: F403
from tests.device.test_measures import *  # noqa: F403
from tests.device.test_training import *  # noqa: F403
