rows = None
