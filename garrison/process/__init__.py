"""The running server: settings, lifecycle, reload, admin HTTP."""
