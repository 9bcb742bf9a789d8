"""Pictures of a finished run; each module draws one."""
