"""The paper's section 7 from one command: what is trained, how, and what is drawn of it."""
