"""An artifact over HTTP: `batching` gathers requests, `codec` reads and writes bodies, `app` routes, `server` runs it.

None of these imports torch; the artifact's engine does where it needs it.
"""
