"""The operator's command line, `ashore …`: one function per command, imported when it is given.

Whoever may write the data directory may do all of this, so no rights are decided here; every change is audited as
`operator`. It works beside a running `serve`, through the same database.
"""
