def test_delete(database):
    database.sql("DELETE FROM orders")
    assert database.sql("SELECT count(*) FROM orders") == "0"


def test_orders_are_there(database):
    # Whatever test_delete did.
    assert int(database.sql("SELECT count(*) FROM orders")) > 0


def test_read_only(shared_database):
    assert int(shared_database.sql("SELECT max(total) FROM orders")) > 0
