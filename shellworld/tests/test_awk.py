"""awk: lines with what the real tools print and their exit codes.

Recorded from mawk 1.3.4 in the sandbox.
"""

import pytest

from shellworld.interpreter.session import Session
from shellworld.tests.trees import TREES

pytestmark = pytest.mark.quick

# fmt: off
LINES = [
    ("awk '{print $2}' data.csv", "\n\n\n\n\n\n\n", 0),
    ("awk -F, '{print $1}' data.csv", "id\n1\n2\n3\n4\n5\n6\n", 0),
    ('awk \'BEGIN{printf "%5.2f|%-5s|%05d|%x|%c|%c|%e|%g|%i|%%|%s\\n", 3.14159,"ab",42,255,65,"hello",1234.5,1e-5,3.9,"x"}\'', " 3.14|ab   |00042|ff|A|h|1.234500e+03|1e-05|3|%|x\n", 0),
    ('awk \'BEGIN{printf "%d %d\\n", "12abc", 1e18; printf "%d\\n", "x"}\'', "12 2147483647\n0\n", 0),
    ('awk \'BEGIN{printf "%s\\n"}\'', "", 2),
    ('awk \'BEGIN{x["b"]=1;x["a"]=2;x["c"]=3;for(k in x)print k,x[k]}\'', "c 3\nb 1\na 2\n", 0),
    ('awk \'BEGIN{for(i=1;i<=12;i++)x[i]=i;for(k in x)printf "%s ",k;print ""}\'', "3 10 8 6 5 2 11 1 4 12 9 7 \n", 0),
    ("awk -F, '{c[$3]++}END{for(k in c)print k,c[k]}' data.csv", "team 1\nblue 2\nred 3\ngreen 1\n", 0),
    ('awk \'BEGIN{n=split("z y x w v u t s r q p o n m l k j i h g f e d c b a",a," ");for(i=1;i<=n;i++)b[a[i]]=i;for(k in b)printf "%s",k;print""}\'', "sigxvlucrhfqoetbkazpndywmj\n", 0),
    ("awk '{c[$1]++}END{for(k in c)print k,c[k]}' words.txt", "banana 1\nfig 2\nelderberry 1\npear 1\ncherry 1\nDate 1\napple 3\n", 0),
    ("awk '{c[$1]++}END{for(k in c)print c[k],k}' words.txt | sort -rn", "3 apple\n2 fig\n1 pear\n1 elderberry\n1 cherry\n1 banana\n1 Date\n", 0),
    ('awk \'BEGIN{n=split("a:b:c",p,":");print n,p[1],p[3]; n=split("",q);print n; n=split(" a  b ",r);print n,r[1]; n=split("abc",s,"");print n,s[2]}\'', "3 a c\n0\n2 a\n3 b\n", 0),
    ('awk \'BEGIN{s="foo bar";gsub(/o/,"[&]",s);print s; sub(/b/,"\\\\&",s);print s; print gsub(/x/,"y",s)}\'', "f[o][o] bar\nf[o][o] &ar\n0\n", 0),
    ('awk \'BEGIN{print match("foobar",/o+/),RSTART,RLENGTH; print match("x",/y/),RSTART,RLENGTH}\'', "2 2 2\n0 0 -1\n", 0),
    ('awk \'BEGIN{print 1==1.0,"a"<"b","10"<"9",10<9,"abc"<1}\'', "1 1 1 0 0\n", 0),
    ("awk '{print ($1<10)}' numbers.txt", "0\n1\n1\n0\n1\n0\n1\n1\n1\n", 0),
    ("awk '{print length}' words.txt", "4\n5\n3\n6\n5\n6\n3\n5\n4\n10\n", 0),
    ("awk '{print length()}' words.txt", "4\n5\n3\n6\n5\n6\n3\n5\n4\n10\n", 0),
    ("awk 'BEGIN{getline;print}' words.txt", "pear\n", 0),
    ('awk \'BEGIN{while((getline l < "words.txt")>0)print l}\'', "pear\napple\nfig\nbanana\napple\ncherry\nfig\napple\nDate\nelderberry\n", 0),
    ('awk \'BEGIN{"echo hi"|getline x;print x}\'', "hi\n", 0),
    ("awk '/pear/,/fig/' words.txt", "pear\napple\nfig\n", 0),
    ("awk '!/a/' words.txt", "fig\ncherry\nfig\nelderberry\n", 0),
    ("awk '$1~/^[a-d]/{print $1}' words.txt", "apple\nbanana\napple\ncherry\napple\n", 0),
    ("awk 'END{print NR,$0}' words.txt", "10 elderberry\n", 0),
    ('awk \'BEGIN{exit 3}END{print "end"}\' words.txt', "end\n", 3),
    ("awk '{exit}END{print NR}' words.txt", "1\n", 0),
    ("awk '{exit 4}' words.txt; echo $?", "4\n", 0),
    ('awk \'{next;print}END{print "e"}\' words.txt', "e\n", 0),
    ("awk 'FNR==1{print FILENAME,NR,FNR}' words.txt numbers.txt", "words.txt 1 1\nnumbers.txt 11 1\n", 0),
    ("awk 'function f(a,b){b=a*2;return b}BEGIN{print f(3)}'", "6\n", 0),
    ("awk 'function fact(n){return n<=1?1:n*fact(n-1)}BEGIN{print fact(10)}'", "3628800\n", 0),
    ("awk '{a[NR]=$0}END{for(i=NR;i>0;i--)print a[i]}' words.txt", "elderberry\nDate\napple\nfig\ncherry\napple\nbanana\nfig\napple\npear\n", 0),
    ('awk \'BEGIN{if(!("x" in a))print "no"; a["x"];if("x" in a)print "yes";delete a["x"];print length(a)}\'', "no\nyes\n0\n", 0),
    ('awk \'BEGIN{a[1,2]=3;for(k in a){split(k,p,SUBSEP);print p[1],p[2]};if((1,2) in a)print "in"}\'', "1 2\nin\n", 0),
    ('awk \'BEGIN{print "b\\na"|"sort"}\'', "a\nb\n", 0),
    ('awk \'{print > "out"}\' words.txt', "", 0),
    ('awk \'{print $1 >> "words.txt"}\' numbers.txt', "", 0),
    ('awk \'{print > $1".txt"}\' words.txt', "", 0),
    ('awk \'BEGIN{RS=""}{print NR": "$1","$NF}\' README.md', "1: #,Project\n2: A,*demo*.\n3: ##,Usage\n4: python,src/main.py\n", 0),
    ('awk \'BEGIN{RS="";FS="\\n"}{print NR": "$1","NF}\' README.md', "1: # Project,1\n2: A small *demo*.,1\n3: ## Usage,1\n4:     python src/main.py,1\n", 0),
    ("awk -F'\\t' '{print NF}' data.csv", "1\n1\n1\n1\n1\n1\n1\n", 0),
    ("awk -F'[ab]' '{print $2}' data.csv", "me,te\nlice,red,5200\no\nrol,red,6100\nve,green,3900\nlue,4700\nnk,red,5200\n", 0),
    ("awk -Ft '{print $1}' notes.txt", "buy milk\ncall Bob a\n\nfix bug #42\nTODO wri\n", 0),
    ("awk -F '|' '{print $1}' data.csv", "id,name,team,salary\n1,alice,red,5200\n2,bob,blue,4100\n3,carol,red,6100\n4,dave,green,3900\n5,erin,blue,4700\n6,frank,red,5200\n", 0),
    ("awk -F. '{print $1}' numbers.txt", "10\n9\n2\n33\n1\n100\n2\n-5\n3\n", 0),
    ("awk -F: '{print $1,$NF}' /etc/passwd", "root /bin/bash\nagent /bin/bash\nbob /bin/bash\ncarol /bin/bash\n", 0),
    ('awk -F, \'{$2="X";print;print NF}\' data.csv', "id X team salary\n4\n1 X red 5200\n4\n2 X blue 4100\n4\n3 X red 6100\n4\n4 X green 3900\n4\n5 X blue 4700\n4\n6 X red 5200\n4\n", 0),
    ("awk '{NF=2;print}' notes.txt", "buy milk\ncall Bob\n \nfix bug\nTODO write\n", 0),
    ('awk \'{$0="p q r";print $2,NF}\' words.txt', "q 3\nq 3\nq 3\nq 3\nq 3\nq 3\nq 3\nq 3\nq 3\nq 3\n", 0),
    ('awk \'BEGIN{OFS="-"}{print $1,$2;$1=$1;print}\' notes.txt', "buy-milk\nbuy-milk\ncall-Bob\ncall-Bob-at-10:30\n-\n\nfix-bug\nfix-bug-#42\nTODO-write\nTODO-write-tests\n", 0),
    ('awk \'BEGIN{x="A";printf x"\\n";print -x, +x, !x}\'', "A\n0 0 0\n", 0),
    ('awk \'BEGIN{print 1 " " 2, 1+1 "x", "a" > "/dev/stdout"}\'', "1 2 2x a\n", 0),
    ("awk 'BEGIN{i=5;print i++ + ++i, i--, i}'", "12 7 6\n", 0),
    ("awk 'BEGIN{print 2**3, 2^3^2, -2^2}'", "", 2),
    ("awk 'BEGIN{x+=5;x-=1;x*=3;x/=2;x%=4;x^=2;print x}'", "4\n", 0),
    ("awk 'BEGIN{while(i<3){i++;if(i==2)continue;print i}do{i--}while(i>0);print i}'", "1\n3\n0\n", 0),
    ('awk \'BEGIN{printf("%s %s\\n","a","b");print("c","d")}\'', "a b\nc d\n", 0),
    ('awk \'BEGIN{print index("abc",""),int(-3.7),int("4x"),sqrt(16),exp(0),sin(0),cos(0),atan2(0,-1)}\'', "1 -3 4 4 1 0 1 3.14159\n", 0),
    ('awk \'BEGIN{print tolower("ABC") toupper("def")}\'', "abcDEF\n", 0),
    ('awk \'BEGIN { print ENVIRON["HOME"]; print ARGC, ARGV[0], ARGV[1] }\' x', "/home/agent\n2 awk x\n", 0),
    ("awk '{print $1' words.txt", "", 2),
    ("awk 'BEGIN{print substr()}'", "", 2),
    ("awk 'BEGIN{foo()}'", "", 2),
    ("awk 'BEGIN{x=}'", "", 2),
    ("awk", "", 0),
    ("awk -f missing", "", 2),
    ("awk '{print}' missing words.txt", "", 2),
    ("awk '{print}' src", "", 2),
    ("awk '{ print $(NF-1) }' notes.txt", "buy\nat\n", 2),
    ("awk '{print $-1}' words.txt", "", 2),
    ("awk 'NF' notes.txt", "buy milk\ncall Bob at 10:30\nfix bug #42\nTODO write tests\n", 0),
    ('awk \'NF>2{print;next}{print "-"}\' notes.txt', "-\ncall Bob at 10:30\n-\nfix bug #42\nTODO write tests\n", 0),
    ("awk 'length>5' words.txt", "banana\ncherry\nelderberry\n", 0),
    ("awk 'length($0)>5' words.txt", "banana\ncherry\nelderberry\n", 0),
    ("awk 'BEGIN{print length(12345)}'", "5\n", 0),
    ("awk '{s+=$1}END{print s, s/NR}' numbers.txt", "155.5 17.2778\n", 0),
    ("awk -F, 'NR>1{sum[$3]+=$4}END{for(i in sum)print i,sum[i]}' data.csv", "blue 8800\nred 16500\ngreen 3900\n", 0),
    ('awk \'BEGIN{printf "%s %d\\n", "a"}\'', "a ", 2),
    ('awk \'BEGIN{printf "%*d|\\n",5,3}\'', "    3|\n", 0),
    ('awk \'BEGIN{print 0x10, "0x10"+0, 011}\'', "0 16 11\n", 0),
    ('awk \'BEGIN{print "a\\tb\\\\n\\x41\\101\\/"}\'', "a\tb\\nAA\\/\n", 0),
    ('awk \'BEGIN{print "a" "b" == "ab"}\'', "1\n", 0),
    ("awk 'BEGIN{print (1,2) in a}'", "0\n", 0),
    ('awk \'BEGIN{$3="x";print;print NF}\'', "  x\n3\n", 0),
    ('awk \'BEGIN{print 1>2?"a":"b"}\'', "", 0),
    ('awk \'BEGIN{print (1>2)?"a":"b"}\'', "b\n", 0),
    ('awk \'BEGIN{a="x";a=a a a;print a}\'', "xxx\n", 0),
    ('awk \'BEGIN{print substr("hello", 2, 100), substr("hello", 10) "|"}\'', "ello |\n", 0),
    ('awk \'$1=="fig"\' words.txt', "fig\nfig\n", 0),
    ("awk -F, '$4>5000' data.csv", "id,name,team,salary\n1,alice,red,5200\n3,carol,red,6100\n6,frank,red,5200\n", 0),
    ('awk -F, \'$4>"5000"{print $1}\' data.csv', "id\n1\n3\n6\n", 0),
    ("awk -F, 'NR>1 && $4 > max {max=$4; who=$2} END {print who, max}' data.csv", "carol 6100\n", 0),
    ('awk \'BEGIN{CONVFMT="%d";a=12.7;print a"";OFMT="%.2f";print 3.14159}\'', "12\n3.14\n", 0),
    ('awk \'BEGIN{print gensub(/a/,"b","g","aaa")}\'', "", 2),
    ('awk \'BEGIN{system("echo hi")}\'', "hi\n", 0),
    ('awk \'BEGIN{r=system("exit 3");print r}\'', "3\n", 0),
    ('awk \'BEGIN{printf "a"; close("x"); fflush()}\'', "a", 0),
    ("awk 'BEGIN{print}'", "\n", 0),
    ("awk '//' words.txt", "pear\napple\nfig\nbanana\napple\ncherry\nfig\napple\nDate\nelderberry\n", 0),
    ("awk 'NR%2' words.txt", "pear\nfig\napple\nfig\nDate\n", 0),
    ('awk \'NR==2,NR==4{print NR": "$0}\' words.txt', "2: apple\n3: fig\n4: banana\n", 0),
    ("awk 'NR>=2 && NR<=4' words.txt", "apple\nfig\nbanana\n", 0),
    ("awk 'NR==3{print;exit}' words.txt", "fig\n", 0),
    ('awk \'{gsub(/ /,"");print}\' notes.txt', "buymilk\ncallBobat10:30\n\nfixbug#42\nTODOwritetests\n", 0),
    ('awk \'{gsub("a","b")}1\' words.txt', "pebr\nbpple\nfig\nbbnbnb\nbpple\ncherry\nfig\nbpple\nDbte\nelderberry\n", 0),
    ('awk \'{sub(/$/,"!")}1\' words.txt', "pear!\napple!\nfig!\nbanana!\napple!\ncherry!\nfig!\napple!\nDate!\nelderberry!\n", 0),
    ('awk \'{gsub(//,"-")}1\' words.txt', "-p-e-a-r-\n-a-p-p-l-e-\n-f-i-g-\n-b-a-n-a-n-a-\n-a-p-p-l-e-\n-c-h-e-r-r-y-\n-f-i-g-\n-a-p-p-l-e-\n-D-a-t-e-\n-e-l-d-e-r-b-e-r-r-y-\n", 0),
    ('awk \'{gsub(/x*/,"-")}1\' words.txt', "-p-e-a-r-\n-a-p-p-l-e-\n-f-i-g-\n-b-a-n-a-n-a-\n-a-p-p-l-e-\n-c-h-e-r-r-y-\n-f-i-g-\n-a-p-p-l-e-\n-D-a-t-e-\n-e-l-d-e-r-b-e-r-r-y-\n", 0),
    ('awk \'{gsub(/p*/,"-")}1\' words.txt', "-e-a-r-\n-a-l-e-\n-f-i-g-\n-b-a-n-a-n-a-\n-a-l-e-\n-c-h-e-r-r-y-\n-f-i-g-\n-a-l-e-\n-D-a-t-e-\n-e-l-d-e-r-b-e-r-r-y-\n", 0),
]
# fmt: on


@pytest.mark.parametrize(("line", "stdout", "code"), LINES)
def test_lines(line, stdout, code):
    result = Session(TREES["project"]).run(line)
    assert (result.stdout, result.exit_code, result.unsupported) == (stdout, code, ())


@pytest.mark.parametrize(
    "line",
    [
        "awk 'BEGIN { print rand() }'",
        "awk 'BEGIN { print systime() }'",
        "awk -W version",
    ],
)
def test_what_is_not_simulated_says_so_and_does_nothing(line):
    session = Session(TREES["project"])
    before = session.tree()
    result = session.run(line)
    assert result.unsupported and result.exit_code != 0
    assert session.tree()["paths"] == before["paths"]
