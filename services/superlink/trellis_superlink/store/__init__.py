"""Tables, migrations, object files and signals under the SuperLink's core."""
