"""Which weights on the Hugging Face hub have the sizes of a preset."""

PUBLISHED = {
    "mae_base": "facebook/vit-mae-base",
    "mae_large": "facebook/vit-mae-large",
    "mae_huge": "facebook/vit-mae-huge",
}
