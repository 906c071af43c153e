"""What keeps a night's work when the power goes. Does not know what is stored.

journal        finished pieces of work, appended and synced
atomic_write   files that are replaced whole or not at all
content_hash   equal content, equal key
lock           one run at a time in a folder
output         where results may be written, so that nothing is lost
sqlite_file    a SQLite file that several processes write
disk_errors    the remedy that fits what the disk refused
"""
