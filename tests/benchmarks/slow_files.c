/* Makes every operation on files below SLOW_PREFIX wait SLOW_US microseconds, as a network file system might.
   It is loaded with LD_PRELOAD (analysis_scale.py). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/mman.h>
#include <dirent.h>
#include <time.h>
#include <unistd.h>
#include <stdio.h>
static const char *prefix; static long us = 2000; static int fds[65536];
__attribute__((constructor)) static void init(void){prefix=getenv("SLOW_PREFIX"); if(getenv("SLOW_US")) us=atol(getenv("SLOW_US"));}
static void wait_(void){ struct timespec t={0,us*1000}; nanosleep(&t,0);}
static int ours(const char*p){return p&&prefix&&!strncmp(p,prefix,strlen(prefix));}
static int note(int fd,const char*p){ if(fd>=0&&fd<65536) fds[fd]=ours(p); return fd;}
#define REAL(name) static typeof(name)*real; if(!real) real=dlsym(RTLD_NEXT,#name)
int open(const char*p,int f,...){REAL(open);va_list a;va_start(a,f);int m=(f&(O_CREAT|O_TMPFILE))?va_arg(a,int):0;va_end(a);if(ours(p))wait_();return note(real(p,f,m),p);}
int open64(const char*p,int f,...){REAL(open64);va_list a;va_start(a,f);int m=(f&(O_CREAT|O_TMPFILE))?va_arg(a,int):0;va_end(a);if(ours(p))wait_();return note(real(p,f,m),p);}
int openat(int d,const char*p,int f,...){REAL(openat);va_list a;va_start(a,f);int m=(f&(O_CREAT|O_TMPFILE))?va_arg(a,int):0;va_end(a);if(ours(p))wait_();return note(real(d,p,f,m),p);}
int openat64(int d,const char*p,int f,...){REAL(openat64);va_list a;va_start(a,f);int m=(f&(O_CREAT|O_TMPFILE))?va_arg(a,int):0;va_end(a);if(ours(p))wait_();return note(real(d,p,f,m),p);}
DIR* opendir(const char*p){REAL(opendir);if(ours(p))wait_();return real(p);}
int stat(const char*p,struct stat*s){REAL(stat);if(ours(p))wait_();return real(p,s);}
int stat64(const char*p,struct stat64*s){REAL(stat64);if(ours(p))wait_();return real(p,s);}
int fstatat(int d,const char*p,struct stat*s,int f){REAL(fstatat);if(ours(p))wait_();return real(d,p,s,f);}
int fstatat64(int d,const char*p,struct stat64*s,int f){REAL(fstatat64);if(ours(p)||(d>=0&&d<65536&&fds[d]))wait_();return real(d,p,s,f);}
int statx(int d,const char*p,int f,unsigned m,struct statx*s){REAL(statx);if(ours(p)||(p&&!*p&&d>=0&&d<65536&&fds[d]))wait_();return real(d,p,f,m,s);}
int lstat(const char*p,struct stat*s){REAL(lstat);if(ours(p))wait_();return real(p,s);}
#define SLOWFD(fd) if(fd>=0&&fd<65536&&fds[fd]) wait_()
ssize_t read(int fd,void*b,size_t n){REAL(read);SLOWFD(fd);return real(fd,b,n);}
ssize_t pread(int fd,void*b,size_t n,off_t o){REAL(pread);SLOWFD(fd);return real(fd,b,n,o);}
ssize_t pread64(int fd,void*b,size_t n,off64_t o){REAL(pread64);SLOWFD(fd);return real(fd,b,n,o);}
int fstat(int fd,struct stat*s){REAL(fstat);SLOWFD(fd);return real(fd,s);}
int fstat64(int fd,struct stat64*s){REAL(fstat64);SLOWFD(fd);return real(fd,s);}
void*mmap(void*a,size_t n,int p,int f,int fd,off_t o){REAL(mmap);SLOWFD(fd);return real(a,n,p,f,fd,o);}
int close(int fd){REAL(close);if(fd>=0&&fd<65536)fds[fd]=0;return real(fd);}
