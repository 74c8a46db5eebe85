"""The LoRA paper's section 7, from trained models to tables, figures and claims."""
