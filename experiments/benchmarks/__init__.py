"""Speed beside the peers: contenders in warm processes of their own take turns in short blocks.

An absolute time means little on a shared machine, so what is compared ran in the same minutes, blocks in
which other programs ran are thrown away, and every contender has shown beforehand that it computes the same.
"""
