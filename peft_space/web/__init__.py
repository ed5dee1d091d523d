"""The page: widgets, and what their values mean. Holds no model; asks workers for everything that needs one."""
