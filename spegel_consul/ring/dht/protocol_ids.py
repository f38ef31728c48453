"""Ids of the protocols that the ring speaks: Spegel's Kademlia, and three that only nodes of this program know."""

KAD = "/spegel/kad/1.0.0"
MEMBERS = "/spegel/members/1.0.0"
WITHDRAW = "/spegel/withdraw/1.0.0"
CLAIMS = "/spegel/claims/1.0.0"
