"""Dockerfiles that people write: read as Docker reads them, checked, and made into what a builder is given.

    found = parse(text)            # reading: instructions, each with its place; what cannot be read, as problems
    problems = check(found)        # rules: what is not offered here, all of it at once
    made = recipe(found, base)     # recipes: one line an instruction, below `FROM base`

Pure: no file and no engine is touched. A builder never sees what a person typed, only what a recipe says, so it does
not matter where its own parser reads a line otherwise than ours.
"""
