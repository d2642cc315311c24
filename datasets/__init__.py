"""The datasets, a folder for each family; what families share lies beside the folders."""
