"""The commands of `ca`, by what they are about; `ca.cli` lists them."""
