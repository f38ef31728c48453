"""The choice of providers: the order in which they are asked, and the reasons for which they are left out."""
