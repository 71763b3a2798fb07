/* How both programs start CPython: isolated from the environment, in UTF-8, with modules from memory and from nowhere that it would have to look for. */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdlib.h>

static void require(PyStatus status)
{
    if (PyStatus_Exception(status))
        Py_ExitStatusException(status);
}

static void set(PyConfig *config, wchar_t **field, const char *path)
{
    require(PyConfig_SetBytesString(config, field, path));
}

static void configure(PyConfig *config, const struct _frozen *modules, const char *program, const char *directory)
{
    PyPreConfig preconfig;

    PyPreConfig_InitIsolatedConfig(&preconfig);
    preconfig.utf8_mode = 1;
    require(Py_PreInitialize(&preconfig));

    PyImport_FrozenModules = modules;
    PyConfig_InitIsolatedConfig(config);
    config->site_import = 0;
    config->write_bytecode = 0;
    config->parse_argv = 0;
    set(config, &config->program_name, program);
    set(config, &config->executable, program);
    set(config, &config->base_executable, program);
    set(config, &config->home, directory);
    set(config, &config->prefix, directory);
    set(config, &config->base_prefix, directory);
    set(config, &config->exec_prefix, directory);
    set(config, &config->base_exec_prefix, directory);
    config->module_search_paths_set = 1;
}
