// Nothing of this header is used (README.md).
