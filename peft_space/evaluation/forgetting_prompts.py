"""Short questions about nothing in particular, written for this app: what a model answers to them should not change much by an adapter."""

GENERAL_PROMPTS = (
    "What is the capital of France?",
    "How many days are in a week?",
    "Name three colours.",
    "Which is larger, 17 or 71?",
    "What is 12 plus 30?",
    "Translate into Spanish: Good morning.",
    "Write one sentence about the sea.",
    "What do bees make?",
    "Give a word that means the same as happy.",
    "Put in alphabetical order: pear, apple, fig.",
    "Is ice colder than steam? Answer yes or no.",
    "Explain in one sentence why the sky is dark at night.",
    "What comes next: 2, 4, 6, 8?",
    "Write a polite reply to: Can we meet tomorrow?",
    "Name an animal that can fly.",
    "Summarise in five words: The train was late because of snow.",
)
