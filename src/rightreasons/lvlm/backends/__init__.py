"""One file for each kind of vision-language model, opened by ``rightreasons.lvlm.open_lvlm``."""
