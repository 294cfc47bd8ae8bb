"""Which version this is, as the package's metadata has it; the build takes it from the Git tag."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("ocvtp-kernels")
except PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "0+unknown"
